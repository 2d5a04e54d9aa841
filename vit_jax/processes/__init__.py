"""What the processes of a run say to each other, besides what their devices do together."""
