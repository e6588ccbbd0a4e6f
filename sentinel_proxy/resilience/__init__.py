"""Pure decisions: breakers, retries, deadlines, budgets, rate limits. Time is an argument."""
