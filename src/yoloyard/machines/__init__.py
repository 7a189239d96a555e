"""Everything that is not training: facts of a machine, the doctor, containers and their images.

The trainer never imports it. It starts the trainer's command line.
"""
