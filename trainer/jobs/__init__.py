"""Trainings that run beside the host: a queue on disk, a supervisor, and one child process per device."""
