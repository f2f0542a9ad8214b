-- A Pipeline is a name in the API; it has no controller that could say more.
return { status = "Healthy", message = "Known to the API server" }
