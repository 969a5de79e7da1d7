"""The commands, one file each: `p2c NAME` runs `main(argv)` of p2c/cli/NAME.py."""
