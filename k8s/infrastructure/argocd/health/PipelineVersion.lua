-- The webhook refuses an invalid version at once; a status exists only where a controller writes one.
if obj.spec == nil or obj.spec.pipelineSpec == nil then
  return { status = "Degraded", message = "Has no pipelineSpec" }
end
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    if condition.status == "False" then
      return { status = "Degraded", message = (condition.reason or "Refused") .. ": " .. (condition.message or "") }
    end
  end
end
return { status = "Healthy", message = "Known to the API server" }
