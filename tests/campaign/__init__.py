"""The campaign: what is done to every command, and what must hold afterwards (docs/campaign.md)."""
