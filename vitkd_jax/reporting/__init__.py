"""What a report is made of: runs read, summed up, drawn, and laid out."""
