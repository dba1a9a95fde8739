"""The machine: files, processes, memory, signals, random streams."""
