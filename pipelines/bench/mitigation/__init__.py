"""What suppresses copies on a lab, at what strength and at what cost: `sharpaudit bench mitigation`."""
