"""The campaign: what is done to every command, and what must hold afterwards (docs/measured/campaign.md)."""
