"""Do to runs what shared machines do: kill them, fill disks, damage files."""
