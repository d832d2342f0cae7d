"""The page, the picture and the Graphviz text of a circuit."""
