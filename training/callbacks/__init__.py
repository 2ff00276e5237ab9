"""What happens beside the step: records, trackers, plots, profiler. One purpose a file."""
