package maitred

import "google.golang.org/grpc/encoding"

// CollectIdle is Collect with another patience for idle connections.
var CollectIdle = collect

// LogCodec reads what guests send to a collector.
func LogCodec() encoding.CodecV2 { return fewRecords{encoding.GetCodecV2("proto")} }
