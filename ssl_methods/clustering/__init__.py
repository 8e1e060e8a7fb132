"""Pictures are sorted into groups that nobody named, and every view must be told to its picture's group."""
