-- Of ClusterQueue and LocalQueue: Active is False when a flavor, a check or the ClusterQueue behind it is missing.
if obj.spec ~= nil and obj.spec.stopPolicy ~= nil and obj.spec.stopPolicy ~= "None" then
  return { status = "Suspended", message = "Stopped by stopPolicy " .. obj.spec.stopPolicy }
end
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    if condition.type == "Active" then
      if condition.status == "True" then
        return { status = "Healthy", message = condition.message or "Active" }
      end
      return { status = "Degraded", message = (condition.reason or "Inactive") .. ": " .. (condition.message or "") }
    end
  end
end
return { status = "Progressing", message = "Not seen by Kueue yet" }
