"""What a video takes, on paper: work counted in the modules that do it, and a model of the time that it needs."""
