"""The expense store: committed hours, days of assets, summaries, back-fills; two engines behind one protocol."""
