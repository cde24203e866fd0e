"""Report stub."""
def write_report(run, config, quarantined):
    return {}
