"""What a correction is made and measured with: behaviours, examples, and their parts."""
