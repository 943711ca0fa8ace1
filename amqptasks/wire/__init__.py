"""Python values and bytes: what a message holds, and how it is written down and read back.

`message` is the shape of one message, `serializers` turns values into bodies and bodies into values,
`compression` shrinks bodies, `failures` turns exceptions into plain data and back. Everything that reads
here takes hostile input: it answers with a value or a `DecodeError`, in bounded memory, and runs no code from the wire.
Nothing here knows of a connection, a queue or a task.
"""
