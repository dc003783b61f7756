"""What is measured rather than tested: figures at full size, and rivals side by side.

Here belong commands that take minutes, gigabytes or another library (the extra `dev`), print each
figure as a line and leave a summary as JSON. What training, inference or a test needs never belongs
here, and a figure that was not measured does not either.
"""
