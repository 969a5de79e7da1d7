"""What happens to runs on shared machines, on purpose: they are killed, disks are full, files are damaged."""
