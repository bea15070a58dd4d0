package upstream

// ParentAddress is where a parent proxy is dialled.
var ParentAddress = parentAddress
