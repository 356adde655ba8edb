"""The physical cost of a token: joules measured where there is a counter, labelled ESTIMATE where there is none."""
