"""The yard: images, containers and the doctor. It starts the trainer's command line; the trainer never imports it."""
