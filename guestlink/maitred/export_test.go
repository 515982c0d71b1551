package maitred

// CollectIdle is Collect with another patience for idle connections.
var CollectIdle = collect
