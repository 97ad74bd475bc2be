"""What we keep running: the online half, which is not written yet."""
