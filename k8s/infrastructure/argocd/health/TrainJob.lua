-- There is no Running condition: Suspended, Complete and Failed are all that a TrainJob says (Trainer 2.3).
local health = { status = "Progressing", message = "Started" }
if obj.metadata.deletionTimestamp ~= nil then
  health.message = "Is being deleted"
  return health
end
if obj.status == nil or obj.status.conditions == nil then
  -- Without a queue that is all one sees until the end.
  return health
end
for _, condition in ipairs(obj.status.conditions) do
  if condition.status == "True" then
    if condition.type == "Failed" then
      return { status = "Degraded", message = (condition.reason or "Failed") .. ": " .. (condition.message or "") }
    elseif condition.type == "Complete" then
      return { status = "Healthy", message = condition.message or "Complete" }
    elseif condition.type == "Suspended" then
      health = { status = "Suspended", message = "Waits for quota, or was preempted; its Workload says why" }
    end
  end
end
return health
