"""Each kernel of ``relaylab lab`` runs this file at its start: no first cell waits for torch and the models."""

__import__("relaylab.views.playground")
__import__("relaylab").load_pair()
