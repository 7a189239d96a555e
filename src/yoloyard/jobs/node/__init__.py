"""What runs on each host of a job: the guard (guard.sh), and the keeper, which trains, counts and saves."""
