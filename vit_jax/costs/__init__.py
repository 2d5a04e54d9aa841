"""What models cost: parameters, operations, bytes. Plain Python."""
