"""The command `ctf`: one file per verb, what each takes and explains; no other room imports from here."""
