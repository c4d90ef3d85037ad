"""Speed, held as ratios against named peers or limits that are measured in the same run."""
