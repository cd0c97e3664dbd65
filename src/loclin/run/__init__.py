"""What every command does alike: run folder, progress, workers, the runner of a study."""
