"""What several test files share: made-up runs and data, tiny trainings, the entries as a user calls them."""
