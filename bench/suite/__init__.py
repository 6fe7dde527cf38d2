"""What the benches of several servers share: rounds in which the servers take turns, the report, the plot.

Nothing here knows what is measured. It stands on `load`.
"""
