"""Jobs on SageMaker, seen from the machine that submits them."""
