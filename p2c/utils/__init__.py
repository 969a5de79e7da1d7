"""What several folders use and none owns: logs, ranges, random streams, checksums, the console."""
