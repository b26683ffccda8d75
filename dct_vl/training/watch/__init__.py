"""What is measured and guarded while a run trains."""
