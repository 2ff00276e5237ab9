"""One run, from launch to final/."""
