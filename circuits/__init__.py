"""Tasks whose circuits are looked for."""
