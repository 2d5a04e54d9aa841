"""What models are built from: modules, attention, and how arrays lie on devices."""
