"""From what a user asked for to the cells to train."""
