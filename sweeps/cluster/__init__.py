"""The Ray cluster: its connection, its nodes, its jobs."""
