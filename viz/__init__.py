"""Pictures and tables as one HTML file: SVG and text, no script, nothing loaded from elsewhere."""
