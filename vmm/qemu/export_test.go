package qemu

var NewMonitor = newMonitor

const MaxQMPLine = maxQMPLine
