"""What several methods are made of, in files by what it is: heads, losses, teachers and queues, statistics."""
