"""What a run costs, before it starts: computation, memory, and the paper's tables beside ours."""
