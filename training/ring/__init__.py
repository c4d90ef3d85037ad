"""Ring attention: attention that is exact over sequences spread across devices, and pays only for what is visible."""
