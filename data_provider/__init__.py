"""Series from files, cut into training pairs and test windows."""
