package cicerone

// HostURL is a URL of a container in the terms of the host.
var HostURL = hostURL
