-- A Workload that waits for quota is in order; one whose queue does not exist waits for ever.
if obj.status == nil or obj.status.conditions == nil then
  return { status = "Progressing", message = "Not seen by Kueue yet" }
end
local conditions = {}
for _, condition in ipairs(obj.status.conditions) do
  conditions[condition.type] = condition
end
local finished = conditions.Finished
if finished ~= nil and finished.status == "True" then
  if finished.reason == "Failed" then
    return { status = "Degraded", message = finished.message or "Failed" }
  end
  return { status = "Healthy", message = finished.message or "Finished" }
end
local quota = conditions.QuotaReserved
if quota ~= nil and quota.status == "False" then
  if quota.reason == "Misconfigured" or quota.reason == "Inadmissible" then
    return { status = "Degraded", message = quota.reason .. ": " .. (quota.message or "") }
  end
  return { status = "Suspended", message = (quota.reason or "Pending") .. ": " .. (quota.message or "") }
end
local admitted = conditions.Admitted
if admitted ~= nil and admitted.status == "True" then
  return { status = "Progressing", message = admitted.message or "Admitted" }
end
return { status = "Progressing", message = "Waits for admission" }
