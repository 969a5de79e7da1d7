"""Helpers of several folders: logs, ranges, random streams, checksums, the console."""
